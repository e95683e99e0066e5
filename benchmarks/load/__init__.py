"""Requests by a schedule, from processes of their own, every one observed."""
