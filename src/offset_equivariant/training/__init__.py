"""Training that knows no task by name: the loop, its checkpoints and its schedules."""
