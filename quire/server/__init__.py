"""The HTTP server: protocols on one side, the narrow engine interface (`generate`, `abort`, `stats`,
`health`) on the other.
"""
