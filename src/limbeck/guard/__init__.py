"""Calls → campaigns: find, in a provider's own logs, those who distil its model without leave."""
