// What is wrong with the page as it is laid out, as a list of sentences.
(() => {
	const found = new Set()
	const root = document.documentElement
	const name = e => e.tagName.toLowerCase() + (e.className.baseVal ?? e.className ? '.' + (e.className.baseVal ?? e.className) : '') + ' "' + (e.textContent || '').trim().slice(0, 40) + '"'
	// A head that phones have read out and do not show, and the patterns.
	const unseen = e => e.closest('.hidden, thead') && getComputedStyle(e.closest('.hidden, thead')).position === 'absolute'
	const shown = e => e.checkVisibility({ visibilityProperty: true, contentVisibilityAuto: true }) && !unseen(e)

	if (root.scrollWidth > root.clientWidth) found.add(`the page is ${root.scrollWidth} wide in a window of ${root.clientWidth}`)

	for (const e of document.querySelectorAll('body *')) {
		if (!shown(e)) continue
		const text = [...e.childNodes].some(n => n.nodeType === Node.TEXT_NODE && n.data.trim())
		const box = e.getBoundingClientRect()
		if (text && e.namespaceURI.endsWith('xhtml')) {
			if (box.left < -.5 || box.right > root.clientWidth + .5) found.add('outside of the window: ' + name(e))
			const r = document.createRange()
			r.selectNodeContents(e)
			const ink = r.getBoundingClientRect()
			for (let p = e; p && p !== document.body; p = p.parentElement) {
				const c = p.getBoundingClientRect()
				if (getComputedStyle(p).overflow !== 'visible' && (ink.right > c.right + 1 || ink.left < c.left - 1 || ink.bottom > c.bottom + 4)) found.add('clipped: ' + name(e))
			}
			const ratio = contrast(e)
			if (ratio < 4.5) found.add(`contrast of ${ratio.toFixed(1)}: ` + name(e))
		}
	}

	const bars = [...document.querySelectorAll('rect.bar')].filter(shown)
	for (const b of bars) {
		const box = b.getBoundingClientRect(), lane = b.closest('svg').getBoundingClientRect()
		if (box.width < 1 || box.height < 1) found.add(`a bar of ${box.width} by ${box.height}: ` + name(b))
		if (box.left < lane.left - 1 || box.right > lane.right + 1) found.add('a bar outside of its lane: ' + name(b))
		if (!b.querySelector('title')) found.add('a bar that says nothing: ' + b.outerHTML)
	}
	if (bars.length === 0) found.add('no bar is shown')

	for (const scale of document.querySelectorAll('.scale')) {
		const ticks = [...scale.children].filter(shown).map(t => t.getBoundingClientRect()).sort((a, b) => a.left - b.left)
		for (let i = 1; i < ticks.length; i++) if (ticks[i].left < ticks[i - 1].right + 2) found.add('times at the axis touch: ' + scale.textContent)
	}

	let level = 0
	for (const h of document.querySelectorAll('h1, h2, h3, h4, h5, h6')) {
		const n = Number(h.tagName[1])
		if (n > level + 1) found.add('a heading skips a level: ' + name(h))
		level = n
	}
	if (document.querySelectorAll('h1').length !== 1) found.add('not one h1')
	for (const t of document.querySelectorAll('th')) if (!t.scope) found.add('a header of nothing: ' + name(t))
	for (const s of document.querySelectorAll('svg')) if (!s.ariaHidden && !s.ariaLabel) found.add('a drawing without a name')
	if (!root.lang || !document.title) found.add('no language or no title')
	return [...found]

	// contrast of an element's text with what is behind it, by WCAG 2.
	function contrast(e) {
		const luminance = ([r, g, b]) => [r, g, b].map(v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4).reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0)
		const rgba = c => { const v = c.match(/[\d.]+/g).map(Number); return [v[0], v[1], v[2], v[3] ?? 1] }
		let ground = [255, 255, 255]
		const layers = []
		for (let p = e; p; p = p.parentElement) layers.unshift(rgba(getComputedStyle(p).backgroundColor))
		for (const [r, g, b, a] of layers) ground = ground.map((v, i) => v * (1 - a) + [r, g, b][i] * a)
		const [x, y] = [luminance(rgba(getComputedStyle(e).color)), luminance(ground)].sort((a, b) => b - a)
		return (x + .05) / (y + .05)
	}
})()
