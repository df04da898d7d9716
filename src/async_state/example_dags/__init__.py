"""Example Dags: see each one's docstring for what it shows and how to use it."""
