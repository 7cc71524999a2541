"""`roost mcp`: Roost as tools for AI agents, by the Model Context Protocol."""
