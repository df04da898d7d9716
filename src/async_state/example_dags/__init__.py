"""DAGs that show how state is used, to take over as they are: copy one to the folder of DAGs.

`async_state_task` keeps a job's id and a checkpoint, `async_state_watcher` a cursor, `async_state_trigger` a trigger's
progress; `async_state_mapped` counts in mapped tasks, and `async_state_sweep` deletes what is left behind.
"""
