"""A browser that does what it is told on standard input, a JSON object a line, and answers each with one.

The first line says how it is to be: {"width": 1280, "height": 800, "dark": false, "headers": {}}. Then
{"go": URL}, {"run": SCRIPT}, {"press": [KEY, ...]}, {"type": [SELECTOR, TEXT]}, {"size": [WIDTH, HEIGHT]},
{"console": true}, {"shot": PATH, "whole": false}, {"colours": PATH}. Where there is no browser, the only answer is {"missing": REASON}.
"""

import json
import sys

from browser import Browser, Missing, colours


def obey(browser, order):
    if "go" in order:
        return browser.go(order["go"])
    if "run" in order:
        return browser.run(order["run"])
    if "press" in order:
        return browser.press(*order["press"])
    if "type" in order:
        return browser.type(*order["type"])
    if "size" in order:
        return browser.resize(*order["size"])
    if "console" in order:
        return browser.console()
    if "colours" in order:
        return colours(order["colours"])
    return browser.screenshot(order["shot"], order.get("whole", False))


def answer(value):
    print(json.dumps(value), flush=True)


def main():
    wanted = json.loads(sys.stdin.readline())
    try:
        browser = Browser(wanted["width"], wanted["height"], wanted["dark"])
    except Missing as reason:
        return answer({"missing": str(reason)})
    with browser:
        if wanted.get("headers"):
            browser.devtools("Network.enable")
            browser.devtools("Network.setExtraHTTPHeaders", headers=wanted["headers"])
        answer({"value": None})
        for line in sys.stdin:
            try:
                answer({"value": obey(browser, json.loads(line))})
            except Exception as error:
                answer({"error": str(error)})


main()
