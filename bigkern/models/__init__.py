"""The documents' models, built from bigkern.nn."""
