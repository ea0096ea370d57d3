"""The command line: a file and a function a command. The only room that knows typer."""
