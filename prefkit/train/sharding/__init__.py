"""A run spread over processes: FSDP2, ZeRO-3, rows shared by sequence parallelism."""
