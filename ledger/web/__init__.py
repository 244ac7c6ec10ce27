"""The ledger over HTTP, for coordinators and nodes alike: C2SP tiles, and pages for people.

The only part of ``ledger/`` that knows aiohttp. :class:`ledger.web.site.LedgerSite` adds the
routes; :mod:`ledger.web.server` is what stands between them and the world.
"""
