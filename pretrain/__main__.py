import sys

from fastxfer.cli import main

main(["pretrain", *sys.argv[1:]], prog_name="fastxfer")
