"""Files, processes, instances, logs, file notifications, text: nothing here knows a checkpoint."""
