"""Orders of published code, bit for bit: what a kind's ``variant`` names.

Each is a function of the protocol's Config, the source and the outlines of the parts; it yields the parts. Seeds go
where the published code puts them, quirks included.
"""
