"""The command line: `main` is the program `drover`, every other module one sub-command, loaded when it is typed.

    main.py   the group, its table of sub-commands, how errors are told
    demo.py   `drover demo`: a real guest, hot plug, a live migration, shown step by step
"""
