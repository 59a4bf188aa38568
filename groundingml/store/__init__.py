"""What must survive a restart: events, predictions, corrections, training runs, versions, jobs.

SQLite by default, PostgreSQL by URL. `tables` says what is kept; a module for each noun says what is asked of
it. Open it with `open_store`:

    store = open_store(default_url(data_dir))
    with store.begin() as session:
        session.add(...)
"""

from groundingml.store.location import default_data_dir, default_url
from groundingml.store.store import Store, StoreError, open_store
from groundingml.store.times import utc_now

__all__ = ["Store", "StoreError", "default_data_dir", "default_url", "open_store", "utc_now"]
