"""What is learned, behind one interface: :mod:`~offset_equivariant.tasks.task`."""
