import sys

# Every process of the demo imports this file; only the first one runs the scenario.
if __name__ == "__main__":
    from demo.scenario import main

    sys.exit(main())
