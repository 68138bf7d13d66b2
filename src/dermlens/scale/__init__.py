"""Data sets too large for one process: shards, engines that make them, and what reads them.

A shard is a slice of the sorted images (``plan``), made by one plain function (``work``) into two
files (``files``), which ``reader`` reads. Who calls that function is the engine's business
(``engines``): this process, one of many jobs, or actors of Ray (``ray_engine``).
"""
