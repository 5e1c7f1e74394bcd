"""What a person types: one file a command of `visualbert`, which `cli.py` finds by name.

A command is a frozen dataclass: its docstring is the help, its fields are the flags, their docstrings say what the
flags mean, and `run` does the work and returns the exit code. Fields that are configurations of `config.py` are flags
of the same names, so each default and each sentence of help stands once, for YAML, Python and the command line.
`declarations.py` reads these declarations, `usage.py` says in one line what is wrong with flags.
"""

INGREDIENT = None
