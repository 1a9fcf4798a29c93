"""Shells for people who talk to a monitor, and the same commands for scripts.

What is typed, pure: text in, values out, no socket and no terminal.

- :mod:`.literal`   values as people write them: JSON, Python's literals, quoted text
- :mod:`.parse`     a line to a command and its arguments, or an error with its position
- :mod:`.check`     arguments against QEMU's schema, before anything is sent
- :mod:`.complete`  what may come next; :mod:`.live` asks the machine for its ids

Talking:

- :mod:`.talk`      :class:`~.talk.Talker`: takes lines; :mod:`.qmp_talk`, :mod:`.hmp_talk`, :mod:`.qga_talk`
- :mod:`.view`      what is shown, as text or JSON; :mod:`.colours`
- :mod:`.script`    lines one after another, and an exit code
- :mod:`.app`       a person at a terminal (prompt_toolkit); :mod:`.history` keeps what was typed
- :mod:`.start`     options, and which of the two it is
- :mod:`.wrap`      a QEMU that lives as long as the shell

The commands: :mod:`.qmp`, :mod:`.hmp`, :mod:`.qga`, and :mod:`.qom` for a machine's objects.

The command line names these modules as text and loads one when its command is typed (``drover.cli.main``).
"""
