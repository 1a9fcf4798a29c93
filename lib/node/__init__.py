"""The node daemon, `drover-noded`: one host's instances, served.

- :mod:`.daemon`  the program
- :mod:`.server`  its HTTP face: who calls is known by :mod:`.access` and :mod:`.tls`; what can be called is the table
  of :mod:`.operations` with their :mod:`.parameters`, which :mod:`.openapi` tells programs of; what goes wrong is told
  as :mod:`.problems`
- :mod:`.model`  the live picture of all instances, a :mod:`.member` and a :mod:`.summary` for each; :mod:`.feed` tells
  of its changes
- :mod:`.screens`  console, VNC and a picture of the screen
- :mod:`.work`  what blocks, in threads
- :mod:`.metrics`  figures for Prometheus
- :mod:`.client`  the daemon from the outside: the same verbs, over its socket
"""
