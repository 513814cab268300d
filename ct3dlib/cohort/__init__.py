"""Many CTs: the catalog, its shards and their stores."""
