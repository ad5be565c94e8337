from serving_fixtures import bundle_folder, control, engine, server, serving  # noqa: F401
