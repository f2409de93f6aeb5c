"""What `import vmfilter` offers: a dump as an object, and each operation as a function of one call.

Nothing of the commands imports this. docs/api.md shows it by example.
"""
