"""Durable records that several processes share, and what is kept in them.

- :mod:`.records`  the interface: keys, values, revisions; compare and swap; watch
- :mod:`.sqlite`  one host's: a file; :mod:`.lookout`, how its changes are waited for
- :mod:`.jobs`  jobs that outlive the daemon that runs them, kept as :mod:`.job_records`; :mod:`.job`, what one is
- :mod:`.owner`  who may run a machine: one record for each, changed by compare-and-swap alone
- :mod:`.progress`  how fast a job gets on, and when it will be done
- :mod:`.runner`  the process that runs a job, known again whatever its pid is then

Whatever lies above sees :class:`.records.Store` alone, and does not know which store it is.
"""
