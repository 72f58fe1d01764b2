"""All use of transformers: if it renames something, only this folder changes."""
