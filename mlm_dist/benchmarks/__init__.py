"""What `benchmark` measures: this package and its peers, each in processes of its own, taking turns."""
