"""The command line: `main` is the program `drover`, every other module one sub-command, loaded when it is typed.

main.py   the program, how errors are told; `commands` has the table of sub-commands, `lazy` the groups made of it
demo.py   `drover demo`: a real guest, hot plug, a live migration, shown step by step; beside it what it needs
          of the host (`demo_needs`), how steps run (`demo_run`) and are told (`demo_face`, `demo_terminal`), and
          how Ctrl-C is taken (`demo_signals`)
"""
