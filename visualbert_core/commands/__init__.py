"""The commands of `visualbert`: one file for each, which `cli.py` finds by name.

A command is a frozen dataclass. Its docstring is the help, its fields are the flags, and the docstrings of the fields
are the help of the flags. `run` does the work and returns the exit code. A field that holds a configuration of
`config.py` adds the fields of that configuration as flags. So each default and each sentence of help is written once,
for YAML, Python and the command line. `declarations.py` reads these declarations. `usage.py` says in one line what is
wrong with the flags that a user typed.
"""

INGREDIENT = None
