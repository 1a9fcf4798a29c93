"""The event daemon, `drover-kvmd`: hears every machine, remembers what it said, and acts on it.

- :mod:`.daemon`  the program
- :mod:`.watcher`  all instances of a host: a :mod:`.follow` for each that runs or is to run again, which does its
  blocking :mod:`.work` in threads
- :mod:`.listen`  to one run, until its end; guests whose storage was full run on
- :mod:`.recorder`  from a connection's events to the journal, with the gaps told
- :mod:`.journal`  the durable events of one instance, written; :mod:`.flush`  of all, in time
- :mod:`.segment`  what of it is on disk, and is read by anybody
- :mod:`.verdict`  who ended a run, with :mod:`.marks` for Ganeti
"""
