"""Instances on one node.

- :mod:`.node`  all of them: made, found, renamed, removed, adopted after a restart of ours
- :mod:`.instance`  one: its life, by way of :mod:`.launch`, :mod:`.mend`, :mod:`.ending`
- :mod:`.condition`  how an instance is; :mod:`.state`, in a word
- :mod:`.boot`  all of them in their order, at the host's boot and shutdown
- :mod:`.restart`  what is to run again; who sees to it is the event daemon
- :mod:`.service`, :mod:`.service_log`  what a daemon of ours says to systemd, and to whoever reads its log
- :mod:`.host`  what the host lends them
- :mod:`.spec`  the specification: what an instance is to be
- :mod:`.argv`  from it to QEMU's command line
- :mod:`.firmware`, :mod:`.seed`  the UEFI that the host has for it, and its disk for cloud-init
- :mod:`.record`  its durable document, changed under a :mod:`.lock` by way of a :mod:`.ledger`
- :mod:`.sockets`, :mod:`.logs`  what QEMU serves and writes, made by us
- :mod:`.tpm`  a TPM beside a QEMU
- :mod:`.paths`  where everything of it lies
- :mod:`.net`  the host's side of a NIC, made and taken away, with its :mod:`.scripts`
- :mod:`.taps`  tap devices, made by us and passed to QEMU as descriptors
- :mod:`.images`  images of disks, opened with all that they stand on, made, and looked at
- :mod:`.process`  a QEMU as a process: started under a :mod:`.keeper`, found again, ended
- :mod:`.identity`  the user id that it runs as
- :mod:`.root`  the root directory that it runs in, if it has its own, and :mod:`.view`  what it sees there
- :mod:`.cgroup`  the control group that it runs in; :mod:`.tree`, where that is; :mod:`.scope`, by systemd
- :mod:`.binary`  what a QEMU binary is and can do, learnt in a :mod:`.trial` and kept in a :mod:`.cache`
- :mod:`.acceleration`  KVM where it is proven to work, by a :mod:`.proof`, else TCG
"""
