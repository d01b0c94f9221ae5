"""Rendering prompt files: jobs, files that are whole, and an engine that goes stage by stage."""
