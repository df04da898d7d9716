import sys

# Every process of the demo imports this file; only the first one tells the story.
if __name__ == "__main__":
    from demo.story import main

    sys.exit(main())
