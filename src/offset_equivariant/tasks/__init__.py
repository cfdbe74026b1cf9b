"""What is learned, behind one interface: :class:`~offset_equivariant.tasks.task.Task`."""
