"""The node daemon, `drover-noded`: one host's instances, served.

- :mod:`.daemon`  the program
- :mod:`.server`  its HTTP face: who calls is known by :mod:`.access` and :mod:`.tls`; what can be called is the table
  of :mod:`.operations` with their :mod:`.parameters`, which :mod:`.openapi` tells programs of; what goes wrong is told
  as :mod:`.problems`
- :mod:`.door` lets connections in, :mod:`.gate` requests, both within the table of :mod:`.limits`
- :mod:`.model`  the live picture of all instances, a :mod:`.member` and a :mod:`.summary` for each
- :mod:`.feed`  tells of its changes, :mod:`.tails` what machines say: each a :mod:`.stream` to any number of
  :mod:`.readers`
- :mod:`.screens`  console, VNC and a picture of the screen
- :mod:`.work`  what blocks, in threads
- :mod:`.figures`  what machines use, served: :mod:`.sampler` asks for it in the background, :mod:`.stats` is what is
  kept of it, :mod:`.metrics` tells Prometheus
- :mod:`.client`  the daemon from the outside: the same verbs, over its socket; :mod:`.link` over the network, by
  connections that are :mod:`.kept`
"""
