// node node.mjs DIRECTORY: clients of npm's `centrifuge` of that directory's node_modules.
// Commands on stdin, answers and events on stdout, as described in sdk.py.

import { createRequire } from 'node:module';
import { createInterface } from 'node:readline';
import { makeDriver } from './driver.mjs';

const { Centrifuge } = createRequire(`${process.argv[2]}/`)('centrifuge');
const drivers = new Map();

function driver(who) {
  const tell = line => drivers.has(who) && process.stdout.write(`${JSON.stringify({ who, ...line })}\n`);
  if (!drivers.has(who)) drivers.set(who, makeDriver(Centrifuge, tell));
  return drivers.get(who);
}

for await (const line of createInterface({ input: process.stdin })) {
  const { who, ...command } = JSON.parse(line);
  driver(who)(command).then(() => command.do === 'forget' && drivers.delete(who));
}
process.exit(0);
