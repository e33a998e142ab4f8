// readme.js: runs the JavaScript of README.md and doc/calling.md as it stands there. node.pl runs it.
'use strict';
const fs = require('fs');
const { Client } = require('pg');

const AsyncFunction = (async () => {}).constructor;

// The first block of a file as a function of what it takes for granted, which returns its call.
function snippet(file, ...given) {
  const source = fs.readFileSync(file, 'utf8').match(/^```js\n([^]*?)^```/m)[1];
  return new AsyncFunction(...given, `${source}\nreturn call;`);
}

function check(got, wanted, name) {
  const good = JSON.stringify(got) === JSON.stringify(wanted);
  console.log(good ? `ok ${name}` : `not ok ${name}: got ${JSON.stringify(got)}, wanted ${JSON.stringify(wanted)}`);
}

(async () => {
  const db = new Client({ user: 'myapp' });
  await db.connect();
  const left = async () =>
    (await db.query("SELECT tokens_remaining FROM kavach_check_budget('agt_helper')")).rows[0].tokens_remaining;

  const ask = snippet(process.argv[2], 'db', 'agent', 'estimate', 'requestId', 'spent');
  const call = await ask(db, 'agt_helper', 100, 'run-1', 30);
  check([call.allowed, call.tokens_granted, call.tokens_remaining], [true, 100, 900], 'an admitted call, its numbers as numbers');
  check(await left(), '970', 'is settled with what it spent');
  let message;
  await ask(db, 'agt_helper', 971, 'run-2', 30).catch((error) => { message = error.message; });
  check(String(message).split(':')[0], 'budget_exceeded', 'a refusal is thrown, with its code');
  check(await left(), '970', 'and nothing is charged');
  check((await snippet(process.argv[3], 'db')(db)).code, 'allowed', 'doc/calling.md: a call with arguments');
  await db.end();
  console.log('end');
})();
