"""Names of what a running coordinator writes into its home for other programs on the machine."""

API_FILE = "api.json"
"""``{"http": URL}`` of the page and the API, while it runs."""
INVITE_FILE = "invite"
"""The line that a volunteer pastes."""
