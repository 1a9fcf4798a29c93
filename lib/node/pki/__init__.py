"""Who may call a node, and how they come to the certificate that says so.

folder.py     where the files lie, who may read them, and how they are written
authority.py  the authority itself: keys, certificates, requests for them; the library `cryptography` is loaded here
ledger.py     who was given what until when, and what is revoked
token.py      the one-time token that somebody joins by, and what is kept of it
own.py        this node's own certificate: made with the authority, got by a token, renewed
"""
