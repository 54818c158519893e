# SPDX-License-Identifier: Apache-2.0
"""A headless Chromium, driven through its DevTools protocol over two pipes: JSON messages that end with a zero byte."""
import json
import os
import select
import shutil
import subprocess
import tempfile
import time

PROGRAM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
PATIENCE = 120  # seconds for one answer


class Browser:
    """`with Browser() as b: b.open(url)`; `b.events` has what the page did."""

    def __enter__(self):
        self.profile = tempfile.mkdtemp(prefix='icma-browser-')
        to_child, self.output = os.pipe()
        self.input, from_child = os.pipe()
        # Chromium reads from descriptor 3 and writes to 4. Duplicates first: any of the four may be 3 or 4 itself.
        safe = [os.dup(to_child), os.dup(from_child)]

        def arrange():
            kept = [os.dup(d) for d in safe]
            os.dup2(kept[0], 3)
            os.dup2(kept[1], 4)

        self.process = subprocess.Popen(
            [PROGRAM, '--headless', '--no-sandbox', '--disable-gpu', '--remote-debugging-pipe', '--disable-dev-shm-usage', '--no-first-run',
             '--disable-extensions', '--disable-background-networking', '--disable-component-update', '--host-resolver-rules=MAP * ~NOTFOUND',
             f'--user-data-dir={self.profile}', 'about:blank'],
            preexec_fn=arrange, close_fds=False, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for descriptor in (to_child, from_child, *safe):
            os.close(descriptor)
        self.buffer, self.last, self.events, self.session = b'', 0, [], None
        target = self.call('Target.createTarget', url='about:blank')['targetId']
        self.session = self.call('Target.attachToTarget', targetId=target, flatten=True)['sessionId']
        for domain in ('Page', 'Runtime', 'Log', 'Network'):
            self.call(f'{domain}.enable')
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        os.close(self.input)
        os.close(self.output)
        shutil.rmtree(self.profile, ignore_errors=True)

    def message(self):
        """The next message; an event is noted too."""
        while b'\0' not in self.buffer:
            if not select.select([self.input], [], [], PATIENCE)[0]:
                raise TimeoutError('the browser is silent')
            more = os.read(self.input, 1 << 16)
            if not more:
                raise EOFError('the browser has ended')
            self.buffer += more
        text, self.buffer = self.buffer.split(b'\0', 1)
        message = json.loads(text)
        if 'method' in message:
            self.events.append(message)
        return message

    def call(self, method, **parameters):
        self.last += 1
        message = {'id': self.last, 'method': method, 'params': parameters, **({'sessionId': self.session} if self.session else {})}
        os.write(self.output, json.dumps(message).encode() + b'\0')
        while True:
            answer = self.message()
            if answer.get('id') == self.last:
                if 'error' in answer:
                    raise RuntimeError(f'{method}: {answer["error"]}')
                return answer['result']

    def open(self, url, theme='light', width=1060):
        self.call('Emulation.setEmulatedMedia', features=[{'name': 'prefers-color-scheme', 'value': theme}])
        self.call('Emulation.setDeviceMetricsOverride', width=width, height=1000, deviceScaleFactor=1, mobile=False)
        self.events.clear()
        self.call('Page.navigate', url=url)
        start = time.monotonic()
        while not self.heard('Page.loadEventFired'):
            if time.monotonic() - start > PATIENCE:
                raise TimeoutError('the page does not load')
            self.message()

    def heard(self, *methods):
        return [e for e in self.events if e['method'] in methods]

    def evaluate(self, script):
        answer = self.call('Runtime.evaluate', expression=script, returnByValue=True)
        if 'exceptionDetails' in answer:
            raise RuntimeError(answer['exceptionDetails'])
        return answer['result'].get('value')
