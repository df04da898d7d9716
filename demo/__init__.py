"""The proposal's DAGs in a real Airflow, its database and the bucket shown side by side: ``python -m demo``."""
