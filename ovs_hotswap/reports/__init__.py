"""What an upgrade, a rollback or a failover leaves for people: a JSON document and a page that shows it.

``document`` has the types, ``compose`` makes a report from a journal or from the watchdog's events, ``comparison`` puts
it beside earlier ones, ``page`` renders it and ``store`` keeps both files. All but the last two are pure.
"""
