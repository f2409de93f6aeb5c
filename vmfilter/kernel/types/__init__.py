"""The crashed kernel's symbols and types, from its own memory. Read only when something asks for them."""
