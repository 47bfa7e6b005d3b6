// Makes and awaits children, and serves requests of its own, until a file is there.
const { spawn, spawnSync } = require('child_process');
const fs = require('fs'), http = require('http'), stop = process.argv[2];
let own = 0, wrong = 0, open = 0;
const check = (got, want) => { own++; if (got !== want) { wrong++; console.error('got', got, 'not', want); } };
// Its idle connections stay: it closes them under its own requests when it was slow.
const server = http.createServer({ keepAliveTimeout: 0 }, (q, a) => a.end('x')).listen(0, '127.0.0.1', () => {
  const ask = () => http.get({ port: server.address().port, host: '127.0.0.1' }, r => { check(r.statusCode, 200); r.resume(); r.on('end', () => fs.existsSync(stop) || setImmediate(ask)); }).on('error', e => check(e.code, 0));
  ask();
});
const one = k => {
  if (fs.existsSync(stop)) { if (--open === 0) { console.log(`own ${own} wrong ${wrong}`); process.exit(0); } return; }
  spawn('sh', ['-c', `exit ${k}`], { stdio: 'ignore' }).on('exit', c => { check(c, k); one(k); });
};
for (const k of [3, 4, 0]) { open++; one(k); }
setInterval(() => check(spawnSync('sh', ['-c', 'exit 9']).status, 9), 50);
