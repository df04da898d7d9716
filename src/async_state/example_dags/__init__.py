"""DAGs to take over as they are: copy one to the folder of DAGs, or import it there."""
