"""What the crashed machine was doing: tasks, stacks, load. Read only when something asks for it."""
