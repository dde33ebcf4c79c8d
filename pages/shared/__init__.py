"""What pages share: the frame around them, the session, charts, widgets and texts."""
