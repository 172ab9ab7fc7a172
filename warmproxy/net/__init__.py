"""Floor 3: asyncio lives here. Carries out what the machines below decide."""
