"""The native engine: torch, paged keys and values, layers split over pipeline ranks. Nothing here knows HTTP."""
