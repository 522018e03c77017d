"""Pictures of the live page: page_shots.py URL FOLDER. Light and dark, desktop and phone, and one statement's page."""

import os
import sys
import time

from browser import Browser, Missing, colours, until

READY = "return document.querySelectorAll('#statements-table tbody tr').length >= 8"
STATEMENT = ("const link = [...document.querySelectorAll('#statements-table tbody a')]"
             ".find((one) => one.textContent.includes('balances WHERE user_id')); link?.click(); return !!link")
# What is wider than its own box without scrolling in it.
WIDE = ("return [...document.querySelectorAll('body, body *:not(thead *)')].filter((one) => one.checkVisibility()"
        " && one.scrollWidth > one.clientWidth + 1 && getComputedStyle(one).overflowX === 'visible'"
        " && getComputedStyle(one).display !== 'inline')"
        ".map((one) => `${one.scrollWidth} in ${one.clientWidth}: ${one.outerHTML.slice(0, 160)} ${one.innerText?.slice(0, 60)}`).slice(0, 12)")
SHOTS = [
    ("page-light.png", 1280, 1120, False, None),
    ("page-dark.png", 1280, 1120, True, None),
    ("page-phone-light.png", 360, 1600, False, None),
    ("page-phone-dark.png", 360, 1600, True, None),
    ("page-statement.png", 1280, 900, False, STATEMENT),
]
BYTES_MAX = 300_000


def shoot(url, path, width, height, dark, script):
    with Browser(width, height, dark) as browser:
        browser.go(url)
        until("the page to show statements", lambda: browser.run(READY))
        if script:
            until("the statement", lambda: browser.run(script))
            until("its histogram", lambda: browser.run("return document.querySelectorAll('.heat rect').length > 0"))
        # A few seconds more, so that the charts move.
        time.sleep(3)
        sideways = browser.run("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert sideways == 0, f"{path}: scrolls sideways by {sideways} pixels: {browser.run(WIDE)}"
        complaints = browser.console()
        assert not complaints, complaints
        browser.screenshot(path)
    size = os.path.getsize(path)
    assert size < BYTES_MAX, f"{path}: {size} bytes"
    seen = colours(path)
    assert seen["count"] > 50 and seen["share"] < 0.98, f"{path} is blank: {seen}"
    print(f"{path}: {width} x {height}, {size // 1000} kB, {seen['count']} colours", flush=True)


def main():
    url, folder = sys.argv[1:]
    os.makedirs(folder, exist_ok=True)
    for name, *how in SHOTS:
        shoot(url, os.path.join(folder, name), *how)


try:
    main()
except Missing as reason:
    sys.exit(f"no pictures: {reason}")
