from serving_fixtures import bundle_folder, engine  # noqa: F401
